"""Python code: `corpus` is the standard library's source, `tokenizer` cuts it into tokens, `models` are the target and
the drafter, `batches` draws what they train on, `objective` and `distill` what they minimise, `train` makes both, and
`evaluate` scores them by `likelihood`, `baseline` and `acceptance`. `target/` and `draft/` are the trained models, as
Transformers loads them."""
