"""Training: what it reads, the loop, contrastive pre-training and segmentation fine-tuning."""
