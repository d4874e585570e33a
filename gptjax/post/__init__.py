"""Post-training: reward models, PPO, GRPO and DPO.

`objectives/` has the losses and advantages, as pure functions of arrays. `problems/`
has the prompts and the verifiers of replies. The other files are the stages.

Letters: B rows, T tokens, V vocabulary; N prompts or pairs, G replies to a prompt.
A row has a prompt and a reply. Index t of an array (B, T) belongs to the token
`targets[t]`: its log-probability, its reward, the value of the text before it, and
`mask_BT`, whether it is a token of the reply (the stop token included).
"""
