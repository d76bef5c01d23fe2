from tasks.wording import counted, quoted, quoted_path, some


def test_what_others_wrote_cannot_drive_the_terminal() -> None:
    assert quoted('a"\x1b[31m\n\x9b\\') == '"a\\"\\x1b[31m\\n\\x9b\\\\"'
    assert quoted("\udce9.jpg") == '"\\udce9.jpg"'


def test_a_long_text_is_cut_and_a_long_path_is_not() -> None:
    assert quoted("x" * 61) == '"' + "x" * 59 + '…"'
    assert quoted_path("x" * 61) == '"' + "x" * 61 + '"'


def test_some_of_many() -> None:
    assert some([1, 2, 3], 3) == "1, 2, 3"
    assert some(["a", "b", "c"], 2, quoted) == '"a", "b" and 1 more'
    assert some([], 2) == ""


def test_one_of_a_kind_and_many() -> None:
    assert [counted(number, "round") for number in (0, 1, 2, 1797)] == ["0 rounds", "1 round", "2 rounds", "1,797 rounds"]
