/// `tributary model merge`: base and adapter as one dense model.

import Adapters
import ArgumentParser
import Checkpoints
import Primitives
import Programs
import Training

struct MergeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "merge", abstract: "Add an adapter to its base, and write a model of its own.")

    @Option(name: .long, help: ArgumentHelp("Folder of a Hugging Face model, or a GGUF file.", valueName: "model")) var model:
        String
    @Option(name: .long, help: ArgumentHelp("Folder of a PEFT adapter.", valueName: "dir")) var adapter: String
    @Option(name: .long, help: ArgumentHelp("Folder for the merged model.", valueName: "dir")) var output: String
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        let checkpoint = try CheckpointFolder(path: model)
        let seconds = try writeModel(to: output) { progress throws(Failure) in
            try ModelFolderWriting.merge(
                checkpoint: checkpoint, adapter: try PEFTAdapter(folder: adapter), output: output, progress: progress)
        }
        result.write([("output", .string(output)), ("seconds", real(seconds))]) {
            "\(output): merged in \(Readable.duration(seconds: seconds))\n"
        }
    }
}

/// Writes a model folder with progress on standard error; the seconds it took.
func writeModel(
    to output: String, _ body: (_ progress: @escaping (WritingProgress) -> Bool) throws(Failure) -> Void
) throws(Failure) -> Double {
    var line = ProgressLine()
    try body { progress in
        let rate = Double(progress.bytesDone) / 1e6 / max(line.seconds, 1e-9)
        line.show(
            done: progress.bytesDone, of: progress.byteCount,
            "writing \(output): \(Readable.bytes(progress.bytesDone)) of \(Readable.bytes(progress.byteCount)), \(Readable.decimal(rate, 0)) MB/s"
        )
        return !Interrupts.isInterrupted
    }
    line.finish()
    return line.seconds
}
