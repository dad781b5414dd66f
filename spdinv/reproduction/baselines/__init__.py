"""What Table 2 of the paper compares with that inverts nothing. One function each: picture in, edited picture out."""
