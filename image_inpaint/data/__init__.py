"""What is trained on and painted: photographs and domains with boxes, rooms with holes."""
