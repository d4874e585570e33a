"""What should it prefer?

`objectives/` holds the algorithms, pure functions of arrays; `problems/` where prompts
come from and how replies to them are verified. The other files are stages, and what
stages share.

Letters: B rows, T tokens, V vocabulary; N prompts or pairs, G replies to one prompt.
A row holds one prompt and one reply, and place t belongs to `targets[t]`: its
log-probability, whether it is the reply's (`mask_BT`, the token that ends the reply
included), its reward, and the value of the text before it.
"""
