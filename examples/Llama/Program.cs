using Mustafar.Examples.Llama.Commands;

return LlamaProgram.Run(args, Console.Out, Console.Error, showProgress: !Console.IsErrorRedirected);
