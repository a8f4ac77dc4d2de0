"""`python -m reports RUN... -o report.html`: a page about one or several runs."""

from reports.report import main

if __name__ == "__main__":
    main()
