"""Places that images are in: folders, archives and registry repositories, by the names people write for them."""
