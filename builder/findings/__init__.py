"""What can be said of an image before it starts: which library each file gets, what is missing, what is there twice."""
