/// `tributary-coordinator export`: the adapter after any round, also while a coordinator runs.

import Adapters
import ArgumentParser
import Checkpoints
import CoordinatorCore
import CoordinatorStore
import Plan
import Primitives
import Programs

struct ExportCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "export", abstract: "Write a round's global adapter in PEFT's format, with metrics.jsonl and run.json.")

    @Option(help: ArgumentHelp("The run's state.", valueName: "file"))
    var state: String = StateFile.defaultPath
    @Option(help: "The round after which the adapter is wanted; 0 is the start (default: the last one).")
    var round: Int?
    @Option(help: ArgumentHelp("The base model's folder, or a GGUF file (default: where the run found it).", valueName: "folder"))
    var model: String?
    @Option(help: ArgumentHelp("The folder to write to.", valueName: "folder"))
    var output: String

    func run() throws {
        let file = StateFile(path: state)
        let (store, federation) = try file.open()
        guard let model = model ?? file.rememberedModel else {
            throw Failure(.usage, "it is not known where the base model lies: name its folder with --model")
        }
        let checkpoint = try CheckpointFolder(path: model)
        let digest = try checkpoint.baseDigest(cache: file.folder)
        guard digest == federation.plan.baseDigest else {
            throw Failure(
                .badData,
                "\(model) is another base model (digest \(digest.short)) than this run's (\(federation.plan.baseDigest.short)): name the right one with --model"
            )
        }
        let maps = checkpoint.configuration.linearMaps
        let weights = try storedWeights(federation, round: round, maps: maps) { digest throws(Failure) in
            guard let bytes = try store.blobBytes(digest) else {
                throw Failure(.badData, "the state \(state) lacks blob \(digest.short): restore a copy")
            }
            return bytes
        }
        let base = absolutePath(model)
        let folder = RunFolder(path: output)
        try Folder.create(output, for: "--output")
        try folder.writeAdapter(
            weights, maps: maps, base: base, headPlace: .init(checkpoint.configuration), labels: federation.plan.labels)
        try folder.writeMetrics(federation)
        try folder.writeRun(federation, base: base)
        let exported = round ?? federation.adapters.map(\.round).max() ?? 0
        Console.line("the adapter after round \(exported) is in \(output)/adapter")
    }
}
