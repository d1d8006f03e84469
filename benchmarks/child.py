"""One measurement in a process of its own: `python child.py WORKLOADS RIVAL WORKLOAD`.

WORKLOADS is the folder of the module `workloads`. Prints the figure.
"""

import sys

if __name__ == "__main__":
    folder, rival, name = sys.argv[1:]
    sys.path.insert(1, folder)
    import rivals
    import workloads

    print(workloads.measure(rivals.load(rival), name))
