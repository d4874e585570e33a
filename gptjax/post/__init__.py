"""What should it prefer?

The algorithms are pure functions on arrays, in the order a batch meets them:
`replies` (masks), `logprobs`, `scores`, `kl`, `advantages`, `weights`, `objectives`;
`preferences` are the losses of pairs. Stages put them together.

Letters: B rows, T tokens, V vocabulary; N prompts or pairs, G replies to one prompt.
A row holds one prompt and one reply, and place t is about `targets[t]`: its
log-probability, whether it belongs to the reply (`mask_BT`, the token that ends the
reply included), its reward, and the value of what stands before it.
"""
