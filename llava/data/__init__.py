"""Training data: records, images, masks, samples and batches."""
