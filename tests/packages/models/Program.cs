using Microsoft.Extensions.AI;
using Mustafar;
using Mustafar.DropIn;
using Mustafar.Extensions.AI;
using Mustafar.Tests.DropIn.Models.GenAI;
using TorchSharp;
using static TorchSharp.torch;

// An existing model on compressed caches: with nothing pruned its logits are what they were, and afterwards it is as before.
using (no_grad())
{
    ModelSizes sizes = new();
    using LlamaForCausalLM model = new(heads: 4, kvHeads: 2, sizes: sizes);
    model.eval();
    Tensor ids = randint(0, sizes.Vocabulary, [1, 100], dtype: ScalarType.Int64);
    Tensor expected = Logits(model, ids);
    using (MustafarAttachment attached = model.UseMustafar(new MustafarOptions { KeySparsity = 0, ValueSparsity = 0 }))
    {
        double difference = (Logits(model, ids) - expected).abs().max().ToDouble();
        if (attached.Memory.CompressedBytes == 0 || difference > 1e-4)
        {
            throw new InvalidOperationException($"{attached.Memory.CompressedBytes} compressed bytes; the logits differ by {difference}.");
        }
    }

    Console.WriteLine("drop-in: the same logits");
}

// A checkpoint as IChatClient.
using IChatClient client = LlamaChatClient.Load(args[0], new LlamaChatClientOptions { ChatTemplate = "llama3" });
ChatResponse response = await client.GetResponseAsync("def add(a, b):", new ChatOptions { MaxOutputTokens = 8 });
Console.WriteLine($"chat: {response.Usage!.OutputTokenCount} tokens");

static Tensor Logits(LlamaForCausalLM model, Tensor ids)
{
    // A prompt, then token by token.
    DynamicKVCache cache = new();
    Tensor logits = model.LastLogits(ids.narrow(1, 0, 90), 0, cache, LlamaForCausalLM.CausalMask(ids.narrow(1, 0, 90), 0));
    for (int past = 90; past < 100; past++)
    {
        Tensor next = ids.narrow(1, past, 1);
        logits = model.LastLogits(next, past, cache, LlamaForCausalLM.CausalMask(next, past));
    }

    return logits.clone();
}
