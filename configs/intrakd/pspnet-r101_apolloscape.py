"""PSPNet R101 for the road markings of ApolloScape: the teacher, to be trained first.

Source: `train_pspnet.sh` of the authors' Codes-for-IntRA-KD. Its crops are 1380x460; these are
the student's.
"""
_base_ = ['apolloscape.py', 'mmseg::_base_/models/pspnet_r50-d8.py']
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101),
    decode_head=dict(num_classes=37, loss_decode=dict(class_weight=_base_.class_weight)),
    auxiliary_head=dict(num_classes=37, loss_decode=dict(class_weight=_base_.class_weight)))
optim_wrapper = dict(optimizer=dict(lr=0.005))
