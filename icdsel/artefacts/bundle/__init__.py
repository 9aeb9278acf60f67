"""The bundle: one folder with all that choosing needs, to keep, to hand on and to load on another machine.

    bundle.json             what it is: settings, encoder, VLM, figures, digests of the other files (`manifest`)
    policy.safetensors      the policy
    candidates.jsonl        the candidates: questions, answers, images
    candidates.safetensors  the candidates as the encoder embeds them
    images/                 the candidates' images, or thumbnails of them
    README.md               the model card (`card`)

`contents` is a bundle in memory, `writing` and `reading` convert it to a folder and back.
"""
