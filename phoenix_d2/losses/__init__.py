"""What the refiner is trained on: mask losses, the predicted IoU, and contrastive refinement learning (CMRL)."""
