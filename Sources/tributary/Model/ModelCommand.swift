/// `tributary model ...`: one model on one machine.

import ArgumentParser

struct ModelCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "model", abstract: "Inspect, train, evaluate and convert a model on this machine.",
        subcommands: [
            InspectCommand.self, TrainCommand.self, EvaluateCommand.self, GenerateCommand.self, MergeCommand.self,
            ExportAdapterCommand.self, QuantizeCommand.self, StartReportCommand.self,
        ])
}
