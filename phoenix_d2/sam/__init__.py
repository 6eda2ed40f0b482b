"""segment-anything's parts, subclassed for what they hide, and the encoders that stand in for its ViT."""
