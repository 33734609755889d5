# The version of Layerwright, from where Python has it.
let
  lines = builtins.filter builtins.isString (builtins.split "\n" (builtins.readFile ../builder/__init__.py));
  found = builtins.filter (match: match != null) (map (builtins.match "__version__ = \"([^\"]+)\".*") lines);
in
builtins.head (builtins.head found)
