/// `tributary model export-adapter`: a PEFT adapter as a GGUF file for llama.cpp.

import Adapters
import ArgumentParser
import Checkpoints
import Primitives
import Programs

struct ExportAdapterCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "export-adapter", abstract: "Write an adapter as a GGUF file, as llama.cpp loads it.")

    @Option(name: .long, help: ArgumentHelp("Folder of a PEFT adapter.", valueName: "dir")) var adapter: String
    @Option(name: .long, help: ArgumentHelp("Its base: folder of a Hugging Face model, or a GGUF file.", valueName: "model"))
    var model: String
    @Option(name: .long, help: ArgumentHelp("The GGUF file to write.", valueName: "file")) var output: String
    @OptionGroup var result: OutputOptions

    func run() throws {
        let checkpoint = try CheckpointFolder(path: model)
        let factors = try PEFTAdapter(folder: adapter)
        let name = absolutePath(adapter).split(separator: "/").last.map(String.init) ?? "adapter"
        try factors.writeGGUF(path: output, configuration: checkpoint.configuration, name: name)
        result.write([("output", .string(output)), ("linear_maps", .integer(factors.entries.count))]) {
            "\(output): the factors of \(factors.entries.count) linear maps, for llama.cpp's --lora\n"
        }
    }
}
