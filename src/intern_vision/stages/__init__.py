"""The stages: each module holds one ``Config`` and one ``run(config, inputs, context) -> Ref``."""
