# Layers as derivations. `plan` is what `build` writes of a lock: a file of JSON, or what is in it. The same plan gives the same
# store paths on any machine; a layer's derivation knows nothing of the image, nor of other layers.
{ plan, system ? null }:
let
  data = if builtins.isAttrs plan then plan else builtins.fromJSON (builtins.readFile plan);
  machine = if system == null then data.system else system;
  stored = path: builtins.appendContext path { ${path} = { path = true; }; };
  runtime = stored data.runtime;

  # What the lock names by digest. `build` adds what is missing; a plan may say where it can be fetched from, too.
  fetched = builtins.mapAttrs (sha256: file: derivation {
    name = sha256;
    system = "builtin";
    builder = "builtin:fetchurl";
    url = file.url or "layerwright:${sha256}";
    outputHash = sha256;
    outputHashAlgo = "sha256";
    outputHashMode = "flat";
    preferLocalBuild = true;
  }) data.files;

  packed = attributes: derivation ({
    system = machine;
    __structuredAttrs = true;
    builder = "${runtime}/lib/ld.so";
    args = [
      "--library-path" "${runtime}/lib" "${runtime}/bin/python" "-I" "-B" "-S" "${runtime}/site/builder/nix/inside.py"
    ];
  } // attributes);

  layers = builtins.mapAttrs (key: layer: packed {
    name = layer.name;
    spec = layer.spec;
    inputs = map (sha256: fetched.${sha256}) layer.files;
  }) data.layers;
in
{
  inherit layers;
  # All layers under one path: what a binary cache is given, and what keeps them from being collected.
  image = packed {
    name = "${data.name}-layers";
    layers = builtins.mapAttrs (key: layer: "${layer}") layers;
  };
}
