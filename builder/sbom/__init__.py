"""What an image is made of and how it was made, in the words of others: SPDX, CycloneDX, SLSA."""
