"""The reference pipeline: a small, trained SkyReels-V2 diffusion-forcing pipeline over a synthetic world."""
