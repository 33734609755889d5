{
  description = "A shell to work on Layerwright in, for those who have nixpkgs: nix develop ./nix/nixpkgs";

  inputs.nixpkgs.url = "flake:nixpkgs";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = make: builtins.listToAttrs (map (name: { inherit name; value = make nixpkgs.legacyPackages.${name}; }) systems);
    in
    {
      packages = each (pkgs: { default = import ../package.nix { inherit pkgs; }; });

      # Python with what it is made of comes from `make test`, into .venv; the judges and tools from here.
      devShells = each (pkgs: {
        default = pkgs.mkShell {
          packages = with pkgs; [
            python3 uv gnumake git go gcc zlib skopeo umoci buildah docker-distribution libfaketime gnupg util-linux nix
          ];
        };
      });
    };
}
