"""Studies: many runs of one spec, chosen by a sampler, against full fine-tuning."""
