"""What every test run ends with, side by side or not."""


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports('passed') + terminalreporter.getreports('failed'):
        for name, value in report.user_properties:
            if name == 'oracle' and report.when == 'call':
                terminalreporter.write_line(f'oracle: {value}')
