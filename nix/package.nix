# Layerwright out of a nixpkgs: what it needs is read from pyproject.toml, so that there is one list of it.
{ pkgs, python ? pkgs.python3 }:
let
  project = (builtins.fromTOML (builtins.readFile ../pyproject.toml)).project;
  name = requirement: builtins.head (builtins.match "([A-Za-z0-9._-]+).*" requirement);
  attribute = requirement: builtins.replaceStrings [ "." "_" ] [ "-" "-" ] (name requirement);
  package = requirement:
    python.pkgs.${attribute requirement} or (throw "this nixpkgs has no Python package ${attribute requirement}");
  # Of those that only some versions of Python need, nixpkgs has none for others.
  wanted = requirement:
    !(builtins.match ".*python_version < '3.14'.*" requirement != null && builtins.compareVersions python.version "3.14" >= 0);
in
python.pkgs.buildPythonApplication {
  pname = project.name;
  version = import ./version.nix;
  pyproject = true;
  src = builtins.path {
    path = ../.;
    name = "layerwright-source";
    filter = path: type: !(builtins.elem (baseNameOf path) [ ".git" "tests" "bench" "docs" "out" "__pycache__" ]);
  };
  build-system = [ python.pkgs.hatchling ];
  dependencies = map package (builtins.filter wanted project.dependencies);
  doCheck = false; # the tests want judges that are no part of nixpkgs: `make test`
  meta = {
    inherit (project) description;
    mainProgram = project.name;
  };
}
