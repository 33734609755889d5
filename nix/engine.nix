# Layers as derivations, and the image of them. `plan` is what `build plan --format nix` prints: a file of JSON, or what is in it.
# The same plan gives the same store paths on any machine; a layer's derivation knows nothing of the image, nor of other layers.
# `src` is the folder of the profile, where that has files of its own.
{ plan, system ? null, src ? null }:
let
  data = if builtins.isAttrs plan then plan else builtins.fromJSON (builtins.readFile plan);
  machine = if system == null then data.system else system;
  stored = path: builtins.appendContext path { ${path} = { path = true; }; };
  runtime = stored data.runtime;

  packed = attributes: derivation ({
    system = machine;
    __structuredAttrs = true;
    builder = "${runtime}/lib/ld.so";
    args = [
      "--library-path" "${runtime}/lib" "${runtime}/bin/python" "-I" "-B" "-S" "${runtime}/site/builder/nix/inside.py"
    ];
  } // attributes);

  # What the lock names by digest: `build` adds what is missing, or the plan says where it can be fetched from, or of which path
  # of the store it is the archive. That mentions other paths, which no output of a known hash may; the packer checks it.
  fetched = builtins.mapAttrs (sha256: file:
    if file ? path then packed { name = sha256; archive = stored file.path; }
    else derivation {
      name = sha256;
      system = "builtin";
      builder = "builtin:fetchurl";
      url = file.url or "layerwright:${sha256}";
      outputHash = sha256;
      outputHashAlgo = "sha256";
      outputHashMode = "flat";
      preferLocalBuild = true;
    }) data.files;

  layers = builtins.mapAttrs (key: layer: packed {
    name = layer.name;
    spec = layer.spec;
    inputs = map (sha256: fetched.${sha256}) layer.files;
  }) data.layers;
in
{
  inherit layers;
  # All layers under one path: what a binary cache is given, and what keeps them from being collected.
  all = packed {
    name = "${data.name}-layers";
    layers = builtins.mapAttrs (key: layer: "${layer}") layers;
  };
  # The image as an OCI layout: layers are links to what their derivations made.
  image = packed {
    name = "${data.name}-image";
    lock = data.lock;
    rendered = data.rendered;
    src = if src == null then "" else "${src}";
    inputs = map (sha256: fetched.${sha256}) data.inputs;
    layers = builtins.mapAttrs (key: layer: "${layer}") layers;
  };
}
