using Mustafar.Models.Llama;
using Mustafar.Storage;

namespace Mustafar.Models.Checkpoint;

/// <summary>Checks that the sizes in config.json match the weights.</summary>
/// <remarks>
/// Checked before a model is made: otherwise a wrong number in config.json could request any amount of memory before it is noticed.
/// </remarks>
internal static class CheckpointShapes
{
    /// <summary>Checks the tensors that show the sizes of config.json; missing ones are reported with all others when loading.</summary>
    /// <exception cref="CheckpointException">A tensor has another shape, or the checkpoint has fewer layers.</exception>
    public static void Check(LlamaConfig config, SafetensorsCheckpoint checkpoint)
    {
        const string layer = "model.layers.0.";
        Require("model.embed_tokens.weight", config.VocabSize, "vocab_size");
        Require(layer + "mlp.gate_proj.weight", config.IntermediateSize, "intermediate_size");
        Require(layer + "self_attn.q_proj.weight", (long)config.NumHeads * config.HeadDim, "num_attention_heads · head_dim");
        Require(layer + "self_attn.k_proj.weight", (long)config.NumKvHeads * config.HeadDim, "num_key_value_heads · head_dim");
        string last = $"model.layers.{config.NumLayers - 1}.";
        if (!checkpoint.Names.Any(name => name.StartsWith(last, StringComparison.Ordinal)))
        {
            throw new CheckpointException(
                $"expected weights of {config.NumLayers} layers (num_hidden_layers in config.json), but there are none of '{last}'.",
                checkpoint.Directory);
        }

        void Require(string name, long rows, string key)
        {
            if (checkpoint.Find(name) is not (SafetensorsFile file, SafetensorsEntry entry))
            {
                throw new CheckpointException($"expected all parameters of the model, but '{name}' is missing.", checkpoint.Directory);
            }

            if (!entry.Shape.SequenceEqual([rows, config.HiddenSize]))
            {
                throw new CheckpointException(
                    $"expected shape [{rows}, {config.HiddenSize}] ({key} and hidden_size in config.json), but got [{string.Join(", ", entry.Shape)}].",
                    file.Path,
                    name);
            }
        }
    }
}
