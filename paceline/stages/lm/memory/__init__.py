"""Language models with memory layers: a state of constant size in the place of KV."""
