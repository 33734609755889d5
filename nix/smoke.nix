# A check that needs nothing but Nix: the engine makes derivations of a plan. It builds without a network and without a shell.
{ system, lib }:
let
  digest = builtins.hashString "sha256" "an input";
  plan = {
    version = 1;
    name = "smoke";
    inherit system;
    runtime = builtins.unsafeDiscardStringContext "${./engine.nix}";
    files.${digest} = { };
    lock = "{}";
    inputs = [ digest ];
    rendered = { };
    layers.key-smoke = { name = "a-layer"; spec = "{}"; files = [ digest ]; };
  };
  image = lib.mkImage plan;
  text = builtins.toJSON {
    inherit (lib) version;
    all = builtins.unsafeDiscardStringContext image.all.drvPath;
    image = builtins.unsafeDiscardStringContext image.image.drvPath;
    layer = builtins.unsafeDiscardStringContext image.layers.key-smoke.drvPath;
  };
in
derivation {
  name = "layerwright-smoke";
  inherit system;
  builder = "builtin:fetchurl";
  url = "file://${builtins.toFile "smoke.json" text}";
  outputHashMode = "flat";
  outputHashAlgo = "sha256";
  outputHash = builtins.hashString "sha256" text;
  preferLocalBuild = true;
}
