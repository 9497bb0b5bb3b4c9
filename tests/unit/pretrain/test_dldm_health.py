from vw2_robot.pretrain.dldm_health import explain_shortfall


def test_a_shortfall_is_blamed_on_the_data_when_the_training_clips_fit():
    assert "more different video" in explain_shortfall(0.7, 0.3, limit=0.5)


def test_a_shortfall_is_blamed_on_the_schedule_when_the_training_clips_do_not_fit():
    assert "more steps" in explain_shortfall(0.9, 0.8, limit=0.5)
