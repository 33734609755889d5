{
  description = "Layerwright: reproducible, layer-ordered, lazily startable OCI images for AI and GPU containers";

  outputs = { self }: {
    lib.version = "0.1.0";
  };
}
