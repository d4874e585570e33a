"""gptjax: from raw text to a chat assistant, in JAX."""
