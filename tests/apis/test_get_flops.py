"""tools/get_flops.py: published figures by the command line, and errors of one sentence."""

import json

import pytest
from toy_runs import run_tool

from cyclemlp_mm.apis.get_flops import get_flops
from cyclemlp_mm.errors import UserError


@pytest.mark.slow
def test_a_config_as_a_user_counts_it(tmp_path):
    arguments = ['fpn_cyclemlp_b1_512x512_40k_ade20k', '--json']
    _, printed = run_tool('get_flops.py', *arguments, cwd=tmp_path, fresh=True)
    found = json.loads(printed)  # nothing else is printed, not even what mmseg warns of
    assert found['size'] == [512, 512]
    assert found['multiply_adds'] == sum(found['parts'].values())
    assert list(found['parts']) == ['backbone', 'neck', 'decode_head']
    assert round(found['parameters'] / 1e6, 1) == 18.9


def test_proposals_of_a_two_stage_detector_are_counted(capsys):
    arguments = ['mask_rcnn_cyclemlp_b1_fpn_1x_coco', '--size', '64', '96']
    parts = get_flops(arguments)['parts']
    assert parts['roi_head.bbox_head'] == 1000 * (7 * 7 * 256 * 1024 + 1024**2 + 1024 * (81 + 320))
    few = get_flops([*arguments, '--cfg-options', 'model.test_cfg.rcnn.max_per_img=10'])
    assert parts['roi_head.mask_head'] == 10 * few['parts']['roi_head.mask_head']
    assert 'roi_head.mask_head' in capsys.readouterr().out


def test_a_backbone_and_the_teacher_is_no_part_of_the_student(capsys):
    plain, taught = (get_flops([name]) for name in ('cyclemlp_b1_in1k', 'cyclemlp_b1_distill_in1k'))
    assert plain['parameters'] == taught['parameters']
    assert plain['multiply_adds'] == taught['multiply_adds']
    get_flops(['--arch', 'b1'])
    assert 'CycleMLP b1 at 224 x 224' in capsys.readouterr().out
    with pytest.raises(UserError, match='has no arch'):
        get_flops(['--arch', 'b9'])
