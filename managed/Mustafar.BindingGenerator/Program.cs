using Mustafar.BindingGenerator;

return GeneratorCommand.Run(args, Environment.CurrentDirectory, Console.Out, Console.Error);
