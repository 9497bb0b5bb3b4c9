"""The configuration of `vw2-import`; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from vw2_robot.limits import ExistingPath


@dataclass(frozen=True)
class ImportConfig:
    """The root configuration of `vw2-import`."""

    path: ExistingPath | None = None
    """the folder with the published files, `VideoWorld2_dLDM_2B`; with `reverse`: folder or checkpoint of the dLDM
    stage"""
    out: str | None = None
    """the run folder to write dldm/ and latents/ to; with `reverse`: the folder for the published files"""
    vae: ExistingPath | None = None
    """folder in diffusers' layout whose vae/ the video model renders with; needed for VideoWorld2_dLDM_DiT.pth"""
    plan: bool = False
    """print names, shapes and bytes of a whole import, and read nothing"""
    reverse: bool = False
    """write a checkpoint of this layout under the published names"""

    def __post_init__(self) -> None:
        if not self.plan and (self.path is None or self.out is None):
            raise ValueError("give path=DIR, the folder with the published files, and out=DIR; or plan=true alone")
        if self.reverse and (self.plan or self.vae is not None):
            raise ValueError("reverse=true takes path and out alone: the published files hold no VAE")
