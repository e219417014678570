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

/// `tributary model quantize`: a model with its linear maps in 4 bits, as bitsandbytes stores them.
struct QuantizeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "quantize", abstract: "Write a model with its linear maps in 4 bits.")

    @Argument(help: ArgumentHelp("Folder of a Hugging Face model, or a GGUF file.", valueName: "model")) var folder: String
    @Option(name: .long, help: "nf4, the only one.") var format = "nf4"
    @Flag(name: .long, help: "Keep the scales in float32 instead of 8 bits.") var plainScales = false
    @Option(name: .long, help: ArgumentHelp("Folder for the quantized model.", valueName: "dir")) var output: String
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        try require(format == "nf4", "--format is \(format): possible is nf4")
        let checkpoint = try CheckpointFolder(path: folder)
        let seconds = try writeModel(to: output) { progress throws(Failure) in
            try ModelFolderWriting.quantize(checkpoint: checkpoint, output: output, nested: !plainScales, progress: progress)
        }
        func bytes(_ checkpoint: CheckpointFolder) throws(Failure) -> Int {
            var sum = 0
            for name in checkpoint.tensorNames { sum += try checkpoint.tensor(name).range.count }
            return sum
        }
        let (before, after) = (try bytes(checkpoint), try bytes(try CheckpointFolder(path: output)))
        result.write([
            ("output", .string(output)), ("bytes_before", .integer(before)), ("bytes", .integer(after)),
            ("seconds", real(seconds)),
        ]) { "\(output): \(Readable.bytes(before)) -> \(Readable.bytes(after)) in \(Readable.duration(seconds: seconds))\n" }
    }
}

/// Writes a model folder with progress on standard error; the seconds it took.
private func writeModel(
    to output: String, _ body: (_ progress: @escaping (WritingProgress) -> Bool) throws(Failure) -> Void
) throws(Failure) -> Double {
    var line = ProgressLine()
    try body { progress in
        line.show(
            done: progress.bytesDone, of: progress.byteCount,
            "writing \(output): \(Readable.bytes(progress.bytesDone)) of \(Readable.bytes(progress.byteCount))")
        return !Interrupts.isInterrupted
    }
    line.finish()
    return line.seconds
}
