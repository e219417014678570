/// Fuzz target `checkpoint`: `config.json`, an index, and a safetensors file with bitsandbytes' tensors beside 4-bit weights.
///
/// The input is the configuration, the index (empty for a model in one file) and the header's text, each ended by a zero byte,
/// and the data. What is accepted must hash, and every linear map must decode.

import Checkpoints
import Glibc
import LinearAlgebra
import Primitives
import Quantization

extension FuzzTarget {
    static let checkpoint = FuzzTarget(name: "checkpoint", seeds: CheckpointFuzz.seeds, run: CheckpointFuzz.run)
}

private enum CheckpointFuzz {
    @Sendable static func seeds() -> [[UInt8]] {
        let state = #"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 2]}"#
        func configuration(_ quantization: String) -> String {
            #"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":2,"intermediate_size":1,"num_hidden_layers":1,"num_attention_heads":1,"num_key_value_heads":1,"vocab_size":2,"max_position_embeddings":8,"rms_norm_eps":1e-05,"hidden_act":"silu","tie_word_embeddings":true\#(quantization)}"#
        }
        let quantized =
            #","quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"nf4"}"#
        func seed(isPacked: Bool, hasIndex: Bool) -> [UInt8] {
            var header: [String] = []
            var data: [UInt8] = []
            func tensor(_ name: String, _ type: String, _ shape: [Int], _ bytes: [UInt8]) {
                header.append(
                    #""\#(name)":{"dtype":"\#(type)","shape":\#(shape),"data_offsets":[\#(data.count),\#(data.count + bytes.count)]}"#
                )
                data += bytes
            }
            func floats(_ name: String, _ shape: [Int]) {
                tensor(name, "F32", shape, [UInt8](repeating: 0x3C, count: 4 * shape.reduce(1, *)))
            }
            let layer = "model.layers.0."
            floats("model.embed_tokens.weight", [2, 2])
            floats("model.norm.weight", [2])
            floats(layer + "input_layernorm.weight", [2])
            floats(layer + "post_attention_layernorm.weight", [2])
            for name in ["k", "v", "o"] { floats(layer + "self_attn.\(name)_proj.weight", [2, 2]) }
            floats(layer + "mlp.gate_proj.weight", [1, 2])
            floats(layer + "mlp.up_proj.weight", [1, 2])
            floats(layer + "mlp.down_proj.weight", [2, 1])
            let query = layer + "self_attn.q_proj.weight"
            if isPacked {
                tensor(query, "U8", [2, 1], [0x12, 0x34])
                tensor(query + ".absmax", "F32", [1], [0, 0, 0x80, 0x3F])
                tensor(query + ".quant_map", "F32", [16], [UInt8](repeating: 0x3C, count: 64))
                tensor(query + ".quant_state.bitsandbytes__nf4", "U8", [state.utf8.count], Array(state.utf8))
            } else {
                floats(query, [2, 2])
            }
            let names = header.compactMap { $0.split(separator: "\"").first }
            let index =
                hasIndex ? #"{"weight_map":{"# + names.map { #""\#($0)":"a.safetensors""# }.joined(separator: ",") + "}}" : ""
            return Array(configuration(isPacked ? quantized : "").utf8) + [0] + Array(index.utf8) + [0]
                + Array(("{" + header.joined(separator: ",") + "}").utf8) + [0] + data
        }
        return [seed(isPacked: true, hasIndex: false), seed(isPacked: false, hasIndex: true)]
    }

    @Sendable static func run(_ input: [UInt8]) {
        let (texts, data) = fuzzParts(input, texts: 3)
        let folder = FuzzPlace.folder
        let weights = FuzzPlace.safetensors(header: texts[2], data: data)
        for name in ["model.safetensors", "model.safetensors.index.json"] { unlink(folder + "/" + name) }
        guard FuzzPlace.write(texts[0], to: folder + "/config.json"),
            FuzzPlace.write(weights, to: folder + (texts[1].isEmpty ? "/model.safetensors" : "/a.safetensors")),
            texts[1].isEmpty || FuzzPlace.write(texts[1], to: folder + "/model.safetensors.index.json")
        else { return }
        do throws(Failure) {
            let checkpoint = try CheckpointFolder(path: folder)
            _ = try checkpoint.baseDigest(cache: nil)
            for map in checkpoint.configuration.linearMaps {
                _ = try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored).decoded()
                if !checkpoint.isBitsAndBytes4Bit(map.name) {
                    _ = try QuantizedMatrix.load(map: map, from: checkpoint, as: .int8)
                }
            }
        } catch {
            precondition(!error.message.isEmpty)
        }
    }
}
