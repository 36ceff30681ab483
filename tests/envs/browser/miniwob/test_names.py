from envs.browser.miniwob.names import MINIWOB_TASKS
from envs.browser.miniwob.tasks import tasks


def test_the_names_are_those_of_browsergyms_tasks():
    assert tasks().keys() == MINIWOB_TASKS
