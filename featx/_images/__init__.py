"""What an image is: where it comes from, its pixels, its digest and its preprocessing."""
