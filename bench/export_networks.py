"""The networks of `edgetta bench export`: of every model family of timm and torchvision its smallest member.

A family is a module of the library that defines networks. timm's `test_` members are toys and do not count. Left out
are families whose smallest member has more than 60 million weights or takes images of more than 512 pixels.
"""

from __future__ import annotations

TIMM = (
    *("halonet_h1", "ese_vovnet19b_slim_dw", "resnext26ts", "cait_xxs24_224", "coat_tiny", "convit_tiny"),
    *("convmixer_768_32", "convnext_zepto_rms", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s"),
    *("cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientformerv2_s0", "mnasnet_small", "efficientvim_m1", "efficientvit_b0"),
    *("efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf"),
    *("gcvit_xxtiny", "ghostnet_050", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small", "iformer_t"),
    *("inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small", "levit_128s"),
    *("lowformer_b0", "mambaout_femto", "coatnet_pico_rw_224", "poolformerv2_s12", "gmlp_ti16_224"),
    *("mobilenetv3_small_050", "mobilevit_xxs", "mvitv2_tiny", "jx_nest_tiny", "nextvit_small", "nf_regnet_b0"),
    *("pit_ti_224", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m0_9", "res2net50_14w_8s"),
    *("resnest14d", "resnet10t", "resnetv2_18", "rexnetr_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s"),
    *("shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_patch16_224", "tresnet_m"),
    *("twins_svt_small", "visformer_tiny", "flexivit_small", "vit_tiny_r_s16_p8_224", "vit_srelpos_small_patch16_224"),
    *("vitamin_small_224", "volo_d1_224", "legacy_xception", "xception41", "xcit_nano_12_p16_224"),
)
TORCHVISION = (
    *("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5"),
    *("mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("swin_t", "vit_b_16"),
)
LARGE = ("vgg11", "alexnet")
"""Of torchvision: large for their fully connected layers alone, so that they stay in; `vit_b_16` as well."""

LEFT_OUT = (
    *("timm:beit", "timm:deepseek_vit", "timm:gemma4_vit", "timm:hieradet_sam2", "timm:mobilenetv5", "timm:naflexvit"),
    *("timm:nasnet", "timm:pnasnet", "timm:qwen3_vit", "timm:vgg", "timm:vision_transformer_sam"),
)
"""Families without a small member."""

NETWORKS = (*(f"timm:{name}" for name in TIMM), *(f"torchvision:{name}" for name in (*TORCHVISION, *LARGE)))
