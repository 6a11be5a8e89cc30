"""Files are named as they would be typed here."""

import pytest

from kd_dense.mm.check.finding import OK, Subject


def said(text):
    subject = Subject({}, check='x')
    subject.say(OK, text, text, source=text)
    [found] = subject.findings
    assert found.message == found.remedy
    assert found.figures == {'source': text}
    return found.message


def test_paths_in_the_working_directory_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said(f'140 tensors of {tmp_path}/a/b.pth fit') == '140 tensors of a/b.pth fit'
    assert said(f"('{tmp_path}/b.pth')") == "('b.pth')"
    assert said(f'{tmp_path}/a, {tmp_path}/b') == 'a, b'
    assert said(f'checkpoint={tmp_path}/a') == 'checkpoint=a'


@pytest.mark.parametrize('text', ['in {}', '/data{}/a', '{}er/a', '{}', 'https://x.org{}/a'])
def test_others_stay(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said(text.format(tmp_path)) == text.format(tmp_path)


def test_in_the_root_of_all_files(monkeypatch):
    monkeypatch.chdir('/')
    assert said('of /data/a.pth, no/b') == 'of /data/a.pth, no/b'
