/// `tributary`: simulate a federation, work with models on one machine, and reach the two role programs.

import ArgumentParser
import Primitives
import Programs

@main struct Tributary: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tributary",
        abstract: "Federated fine-tuning of language models, for machines people already own.",
        version: Version.current,
        subcommands: [
            DemoCommand.self,
            SimulateCommand.self, CoordinatorRole.self, ClientRole.self, ModelCommand.self,
            BenchCommand.self, DoctorCommand.self, PrivacyCommand.self, ReportCommand.self,
        ])

    static func main() { CommandLineProgram.run(Self.self) }
}
