"""LLaVA over LLaMA, under the names that LLaVA's users import."""

from llava.model.language_model.families import llava_class

LlavaLlamaForCausalLM = llava_class("llama")
LlavaConfig = LlavaLlamaForCausalLM.config_class
