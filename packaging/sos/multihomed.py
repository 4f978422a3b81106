# This file is part of multihomed, and licensed under the Apache License, version 2.0.
"""A plugin of sos: https://github.com/sosreport/sos"""

from sos.report.plugins import Plugin, DebianPlugin, IndependentPlugin

try:
    from sos.report.plugins import PluginOpt
except ImportError:  # before sos 4.2
    PluginOpt = None

REDACT = 'replace addresses and names in what multihomectl report collects'


# sos 4.0 of Debian 12 does not load what is only independent.
class Multihomed(Plugin, IndependentPlugin, DebianPlugin):

    short_desc = 'Policy routing of hosts with several links'

    plugin_name = 'multihomed'
    profiles = ('network', 'system')
    packages = ('multihomed',)
    files = ('/usr/sbin/multihomed', '/usr/local/sbin/multihomed')
    services = ('multihomed', 'multihomed-prober', 'multihomed-binder')
    if PluginOpt:
        option_list = [PluginOpt('redact', default=False, desc=REDACT)]
    else:
        option_list = [('redact', REDACT, 'fast', False)]

    def setup(self):
        report = 'multihomectl report'
        if self.get_option('redact'):
            report += ' --redact'
        else:
            # The off switch is written by root. Leases are a database: multihomectl status has them.
            self.add_copy_spec([
                '/etc/multihomed/',
                '/run/multihomed/*.json',
                '/run/multihomed/rt_tables.conf',
                '/var/lib/multihomed/*.json',
            ])
            self.add_cmd_output([
                'multihomectl status --verbose --color never',
                'multihomectl status --json',
                'multihomectl doctor --color never',
                'multihomectl doctor --json',
                'multihomectl plan',
                'multihomectl lease list',
            ])
        # The report is a new directory among the output of commands.
        directory = self.get_cmd_output_path(make=True)
        self.add_cmd_output(report + ' --output ' + directory + '/report', suggest_filename='multihomectl_report', timeout=120)
