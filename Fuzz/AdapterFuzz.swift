/// Fuzz target `adapter`: a PEFT folder.
///
/// The input is `adapter_config.json` and the header's text of the factors, each ended by a zero byte, and their data. What is
/// accepted must become the weights of a model that has its maps, and a GGUF file.

import Adapters
import Checkpoints
import Primitives

extension FuzzTarget {
    static let adapter = FuzzTarget(name: "adapter", seeds: AdapterFuzz.seeds, run: AdapterFuzz.run)
}

private enum AdapterFuzz {
    @Sendable static func seeds() -> [[UInt8]] {
        let prefix = "base_model.model.model.layers.0.self_attn."
        func configuration(_ more: String) -> [UInt8] {
            Array(
                (#"{"peft_type":"LORA","task_type":"CAUSAL_LM","r":2,"lora_alpha":4,"bias":"none","target_modules":["q_proj"]"#
                    + more
                    + "}").utf8)
        }
        let header =
            #"{"\#(prefix)q_proj.lora_A.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"\#(prefix)q_proj.lora_B.weight":{"dtype":"F32","shape":[4,2],"data_offsets":[24,56]}}"#
        let data = [UInt8](repeating: 0x3C, count: 56)
        return [
            "", #","use_rslora":true"#, #","rank_pattern":{"q_proj":2},"alpha_pattern":{".*q_proj":8}"#,
            #","modules_to_save":["classifier"]"#,
        ].map { configuration($0) + [0] + Array(header.utf8) + [0] + data }
    }

    @Sendable static func run(_ input: [UInt8]) {
        let (texts, data) = fuzzParts(input, texts: 2)
        let folder = FuzzPlace.folder
        guard FuzzPlace.write(texts[0], to: folder + "/adapter_config.json"),
            FuzzPlace.write(
                FuzzPlace.safetensors(header: texts[1], data: data), to: folder + "/adapter_model.safetensors")
        else { return }
        do throws(Failure) {
            let adapter = try PEFTAdapter(folder: folder)
            let maps = adapter.entries.map { LinearMap(name: $0.map, outputs: $0.outputs, inputs: $0.inputs) }
            let weights = try adapter.weights(maps: maps)
            precondition(exportedFactors(weights: weights).count == adapter.entries.count)
        } catch {
            precondition(!error.message.isEmpty)
        }
    }
}
