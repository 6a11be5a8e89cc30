"""ERFNet for the road markings of ApolloScape, without distillation.

Source: `train_erfnet_vanilla.sh` and `.py` of the authors' Codes-for-IntRA-KD; the model is
mmseg's.
"""
_base_ = ['apolloscape.py', 'mmseg::_base_/models/erfnet_fcn.py']
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=37, loss_decode=dict(class_weight=_base_.class_weight)))
