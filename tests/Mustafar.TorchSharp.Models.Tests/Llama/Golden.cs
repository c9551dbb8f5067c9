using System.Runtime.InteropServices;
using System.Text.Json;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Llama;
using Mustafar.Storage;
using static TorchSharp.torch;

namespace Mustafar.Tests.Llama;

/// <summary>The shipped checkpoint, and reference results that Hugging Face transformers gave for it in float32.</summary>
internal static class Golden
{
    public static string Checkpoint { get; } = Path.Combine(AppContext.BaseDirectory, "checkpoint", "pyllama-14m");

    public static string Directory { get; } = Path.Combine(AppContext.BaseDirectory, "golden");

    public static JsonElement Json { get; } = ReadJson();

    public static int[] PromptIds => Numbers(Json.GetProperty("prompt_ids"));

    public static int[] Numbers(JsonElement array) => [.. array.EnumerateArray().Select(item => item.GetInt32())];

    /// <summary>A tensor of pyllama-golden.safetensors.</summary>
    public static float[] Floats(string name) => Floats(Path.Combine(Directory, "pyllama-golden.safetensors"), name);

    public static float[] Floats(string path, string name) => Read<float>(path, name, ScalarType.Float32);

    public static long[] Longs(string path, string name) => Read<long>(path, name, ScalarType.Int64);

    /// <summary>Loads a checkpoint in float32.</summary>
    public static LlamaForCausalLM LoadModel(string directory, ScalarType dtype = ScalarType.Float32, Device? device = null)
    {
        LlamaForCausalLM model = new(LlamaConfig.Load(Path.Combine(directory, "config.json")), dtype, device);
        using SafetensorsCheckpoint checkpoint = SafetensorsCheckpoint.Open(directory);
        IReadOnlyList<string> unused = CheckpointLoader.Load(model, checkpoint);
        Assert.That(unused, Is.Empty);
        return model;
    }

    /// <summary>The largest difference; infinite where one is NaN, which must not pass as a small error.</summary>
    public static double LargestError(double[] actual, float[] expected)
    {
        Assert.That(actual, Has.Length.EqualTo(expected.Length));
        double largest = 0;
        for (int i = 0; i < actual.Length; i++)
        {
            double error = Math.Abs(actual[i] - expected[i]);
            largest = double.IsNaN(error) ? double.PositiveInfinity : Math.Max(largest, error);
        }

        return largest;
    }

    private static T[] Read<T>(string path, string name, ScalarType dtype)
        where T : struct
    {
        using SafetensorsFile file = new(path);
        SafetensorsEntry entry = file.Entries[name];
        Assert.That(entry.DType, Is.EqualTo(dtype));
        return MemoryMarshal.Cast<byte, T>(file.Read(entry, 0, (int)entry.ByteCount)).ToArray();
    }

    private static JsonElement ReadJson()
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllText(Path.Combine(Directory, "pyllama-golden.json")));
        return document.RootElement.Clone();
    }
}
