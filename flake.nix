{
  description = "Layerwright: reproducible, layer-ordered, lazily startable OCI images for AI and GPU containers";

  # No inputs: it evaluates without a network. A shell to work in, which needs nixpkgs, is the flake in nix/nixpkgs.
  outputs = { self }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = make: builtins.listToAttrs (map (name: { inherit name; value = make name; }) systems);
    in
    {
      lib = {
        version = import ./nix/version.nix;
        # The image of a plan, and its layers, as derivations: of what `build plan --format nix` prints, or of
        # `{ plan = …; src = …; }` where the profile has files of its own: `src` is its folder.
        mkImage = given: import ./nix/engine.nix (if builtins.isAttrs given && given ? plan then given else { plan = given; });
        # Layerwright itself, out of a nixpkgs.
        mkPackage = { pkgs }: import ./nix/package.nix { inherit pkgs; };
      };

      overlays.default = final: prev: { layerwright = self.lib.mkPackage { pkgs = final; }; };

      checks = each (system: { smoke = import ./nix/smoke.nix { inherit system; inherit (self) lib; }; });
    };
}
